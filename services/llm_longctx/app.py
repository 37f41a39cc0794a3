"""The app of llm-longctx: language models behind OpenAI's routes, what they keep, and what methods cost in quality."""

from services.llm_longctx import document_routes, evaluation_routes, method_routes, openai, session_routes
from services.llm_longctx.local import chosen
from shared.serving.build_app import build
from shared.settings import settings

routers = [
    openai.router,
    session_routes.router,
    document_routes.router,
    evaluation_routes.router,
    method_routes.router,
]
app = build("llm-longctx", routers=routers, servables=chosen(settings().llm_model))
