"""Settings of the backend: those of every process, and where Label Studio is."""

from pydantic import Field, SecretStr

from shared.settings import Settings


class LabelStudioSettings(Settings):
    """Settings with Label Studio's address, token and password."""

    label_studio_url: str | None = Field(
        None, description="Address of Label Studio, whose pictures and labels `fovea label-studio` reads."
    )
    label_studio_token: SecretStr | None = Field(None, description="Access token of an account there.")
    label_studio_backend_password: SecretStr | None = Field(
        None, description="Password that Label Studio must send to `fovea label-studio`; needed beyond loopback."
    )
