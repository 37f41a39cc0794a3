"""The app of llm-longctx: language models behind OpenAI's routes, and what their methods cost in quality."""

from services.llm_longctx import evaluation_routes, openai
from services.llm_longctx.local import chosen
from shared.serving.app import build
from shared.settings import settings

app = build("llm-longctx", routers=[openai.router, evaluation_routes.router], servables=chosen(settings().llm_model))
