"""The setting of traffic plans."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class RolloutSettings(BaseSettings):
    """What the environment says about rollouts."""

    model_config = SettingsConfigDict(env_prefix="FOVEA_", frozen=True)

    traffic: str = Field(
        "",
        description="Who answers the requests of a service that has versions, as JSON: "
        '`{"detection": {"percent": {"canary": 5}, "shadow": "next", "shadow_percent": 10}}`; '
        "`/v1/admin/traffic` sets it for all gateways.",
    )
