"""Settings of the plug-in: the PACS that studies are fetched from and stored in."""

from __future__ import annotations

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class PacsSettings(BaseSettings):
    """The PACS, from the environment: `FOVEA_DICOMWEB_URL` and `FOVEA_DICOMWEB_AUTHORIZATION`."""

    model_config = SettingsConfigDict(env_prefix="FOVEA_DICOMWEB_", frozen=True, extra="ignore")

    url: str | None = Field(None, description="DICOMweb root, which `/studies` follows.")
    authorization: SecretStr | None = Field(
        None, description="`Authorization` header, such as `Basic …` or `Bearer …`."
    )
