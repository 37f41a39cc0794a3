"""The setting of traffic plans."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class RolloutSettings(BaseSettings):
    """Settings of rollouts."""

    model_config = SettingsConfigDict(env_prefix="FOVEA_", frozen=True)

    traffic: str = Field(
        "",
        description="Versions that answer the requests of a service, as JSON: "
        '`{"detection": {"percent": {"canary": 5}, "shadow": "next", "shadow_percent": 10}}`; '
        "`/v1/admin/traffic` sets it for all gateways.",
    )
