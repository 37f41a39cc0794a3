"""The command `fovea label-studio`."""

import asyncio
from dataclasses import dataclass
from typing import Annotated

import httpx2
import typer
import uvicorn
from rich.console import Console

from fovea.errors import InvalidOption
from fovea_labelstudio.backend import LabelStudioBackend, build_backend_app
from fovea_labelstudio.label_studio import LabelStudio
from fovea_labelstudio.predictor import Predictor, version_of
from fovea_labelstudio.settings import LabelStudioSettings
from fovea_labelstudio.training_run import TrainingPlan, TrainingRuns
from shared import telemetry
from shared.local_names import is_loopback
from shared.storage.private_files import make_files_private

PREDICT_TIMEOUT_S = 90
"""Label Studio itself waits for 100 s."""


@dataclass(frozen=True, slots=True)
class Training:
    """The training on people's labels, and its schedule."""

    recipe: Annotated[str | None, typer.Option(help="Recipe that trains on labels; left out, nothing is trained.")] = (
        None
    )
    name: Annotated[str | None, typer.Option(help="Name of the trained model; by default MODEL-annotated.")] = None
    set_: Annotated[list[str] | None, typer.Option("--set", help="A knob of the recipe, `name=value`.")] = None
    fit_every: Annotated[
        int, typer.Option(min=0, help="Train after so many new labels; 0: when a person asks for it.")
    ] = 0


def label_studio(
    model: Annotated[str, typer.Argument(help="The served model that draws first labels, for example `pranet`.")],
    *,
    training: Training,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 9090,
    url: Annotated[str, typer.Option(envvar="FOVEA_URL", help="The gateway.")] = "http://127.0.0.1:8080",
) -> None:
    """Run an ML backend for Label Studio: a served model pre-labels, and corrected labels train the next model."""
    config = LabelStudioSettings()
    check_access(config, host)
    make_files_private(config.data_dir)
    telemetry.configure_logs(config.log_level, config.log_format)
    asyncio.run(_serve(config, model, training, url, (host, port)))


def check_access(config: LabelStudioSettings, host: str) -> None:
    """See that the backend can be started.

    Raises InvalidOption: Label Studio's address or token is missing, or others could reach it without a password.
    """
    if not config.label_studio_url or config.label_studio_token is None:
        hint = "Set FOVEA_LABEL_STUDIO_URL and FOVEA_LABEL_STUDIO_TOKEN (Account & Settings, Access token)."
        raise InvalidOption("Label Studio's address or its token is missing.", hint=hint)
    if config.label_studio_backend_password is None and not is_loopback(host):
        hint = "Set FOVEA_LABEL_STUDIO_BACKEND_PASSWORD, and enter it in Label Studio."
        raise InvalidOption(f"On {host} others could reach the backend without a password.", hint=hint, field="host")


async def _serve(config: LabelStudioSettings, model: str, training: Training, url: str, place: tuple[str, int]) -> None:
    """Serve until a signal; a training ends with it."""
    host, port = place
    trained = training.name or f"{model}-annotated"
    token, key = config.label_studio_token, config.up_api_key
    secret = token.get_secret_value() if token else ""
    files = LabelStudio(config.label_studio_url or "", secret, limit=config.max_body_bytes)
    headers = {"authorization": f"Bearer {key.get_secret_value()}"} if key else {}
    async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=PREDICT_TIMEOUT_S, trust_env=False) as gateway:
        predictor = Predictor(gateway, files, [trained, model])
        served = await predictor.find_model()
        runs = None
        if training.recipe is not None:
            folder = config.data_dir / "label-studio" / trained
            plan = TrainingPlan(
                served.task, training.recipe, trained, folder, config.max_pixels, tuple(training.set_ or ())
            )
            runs = TrainingRuns(files, plan)
        app = build_backend_app(LabelStudioBackend(predictor, runs, training.fit_every), config)
        Console().print(f"{version_of(served)} for Label Studio at http://{host}:{port}", highlight=False)
        try:
            await uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_config=None)).serve()
        finally:
            if runs is not None:
                await runs.stop()
            await files.close()
