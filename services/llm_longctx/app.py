"""App of llm-longctx: language models behind OpenAI's routes, their sessions and documents."""

from services.llm_longctx.api import documents, embeddings, methods, openai, responses, sessions, steering
from services.llm_longctx.serving.local_models import select_models
from shared.serving.build_app import build
from shared.settings import settings

routers = [
    openai.router,
    responses.router,
    embeddings.router,
    sessions.router,
    documents.router,
    methods.router,
    steering.router,
]
app = build("llm-longctx", routers=routers, servables=select_models(settings().llm_model))
