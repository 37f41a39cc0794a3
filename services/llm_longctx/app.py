"""The app of llm-longctx: language models behind OpenAI's routes, what they keep, and what methods cost in quality."""

from services.llm_longctx.api import documents, evaluations, methods, openai, sessions
from services.llm_longctx.serving.local_models import chosen
from shared.serving.build_app import build
from shared.settings import settings

routers = [
    openai.router,
    sessions.router,
    documents.router,
    evaluations.router,
    methods.router,
]
app = build("llm-longctx", routers=routers, servables=chosen(settings().llm_model))
