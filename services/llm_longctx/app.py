"""The app of llm-longctx: language models behind OpenAI's routes."""

from services.llm_longctx import openai
from services.llm_longctx.local import chosen
from shared.serving.app import build
from shared.settings import settings

app = build("llm-longctx", routers=[openai.router], servables=chosen(settings().llm_model))
