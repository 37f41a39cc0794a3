"""App of llm-longctx: language models behind OpenAI's routes. Plug-ins bring more models and routes."""

from services.llm_longctx.api import embeddings, lora, methods, openai
from services.llm_longctx.api.state_loading import hide_missing_fields
from services.llm_longctx.serving.local_models import select_models
from shared.serving.build_app import build
from shared.settings import settings

apis = (openai, embeddings, methods, lora)
routers = [api.router for api in apis]
app = build("llm-longctx", routers=routers, servables=select_models(settings().llm_model))
hide_missing_fields(app)
