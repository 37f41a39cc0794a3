"""DICOMweb client of one PACS: QIDO-RS searches, WADO-RS fetches, STOW-RS stores (PS3.18).

Asks for UIDs, dates and modalities only, so that no name of a patient passes through a search.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import httpx2
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from fovea.errors import Fault, InvalidOption, NotFound, NotReady, TooLarge
from fovea_dicom.bodies import DICOM, build_related, parse_related

TIMEOUT_S = 60.0
MAX_STUDY_BYTES = 2**30
"""Most bytes that are fetched of a study."""

CLASS_NOT_TAKEN = 0x0122
"""Failure Reason of many PACS for segmentations and reports."""

FIELDS = {
    "StudyInstanceUID": "0020000D",
    "StudyDate": "00080020",
    "ModalitiesInStudy": "00080061",
    "NumberOfStudyRelatedSeries": "00201206",
    "NumberOfStudyRelatedInstances": "00201208",
}

LISTED = {"ModalitiesInStudy"}
"""Attributes of several values."""


class PacsSettings(BaseSettings):
    """The PACS, from the environment: `FOVEA_DICOMWEB_URL` and `FOVEA_DICOMWEB_AUTHORIZATION`."""

    model_config = SettingsConfigDict(env_prefix="FOVEA_DICOMWEB_", env_ignore_empty=True, frozen=True, extra="ignore")

    url: str | None = Field(None, description="DICOMweb root, which `/studies` follows.")
    authorization: SecretStr | None = Field(
        None, description="`Authorization` header, such as `Basic …` or `Bearer …`."
    )


class DicomWebClient:
    """A PACS that speaks DICOMweb; `url` is what `/studies` follows."""

    def __init__(
        self, url: str, *, authorization: str | None = None, transport: httpx2.BaseTransport | None = None
    ) -> None:
        headers = {"authorization": authorization} if authorization else {}
        self._client = httpx2.Client(
            base_url=url.rstrip("/"), headers=headers, transport=transport, timeout=TIMEOUT_S, follow_redirects=False
        )

    def search_studies(self, filters: Mapping[str, str] | None = None, *, limit: int = 50) -> list[dict[str, Any]]:
        """Studies, by attributes such as `StudyDate`: UID, date, modalities (always a list) and counts.

        Raises NotReady: the PACS can't be reached, or refuses.
        """
        params = {**(filters or {}), "limit": str(limit), "includefield": ",".join(FIELDS.values())}
        answer = self._send("GET", "/studies", params=params, headers={"accept": "application/dicom+json"})
        if answer.status_code == 204:
            return []
        try:
            rows = answer.json()
            return [
                {
                    name: _values(row.get(tag)) if name in LISTED else _value(row.get(tag))
                    for name, tag in FIELDS.items()
                }
                for row in rows
            ]
        except (ValueError, AttributeError, TypeError) as error:
            raise Fault("The PACS answered a search in a form that is not DICOM JSON.") from error

    def retrieve(self, study: str, series: str | None = None) -> list[bytes]:
        """All files of a study, or of one of its series.

        Raises:
            NotFound: The PACS has no such study.
            NotReady: It can't be reached, or refuses.
            TooLarge: It is larger than `MAX_STUDY_BYTES`.
        """
        path = f"/studies/{_check_uid(study)}" + (f"/series/{_check_uid(series)}" if series else "")
        accept = f'multipart/related; type="{DICOM}"; transfer-syntax=*'
        try:
            with self._client.stream("GET", path, headers={"accept": accept}) as answer:
                _check(answer.status_code)
                body = bytearray()
                for chunk in answer.iter_bytes():
                    body += chunk
                    if len(body) > MAX_STUDY_BYTES:
                        detail = f"The study has more than {MAX_STUDY_BYTES // 2**20} MB."
                        raise TooLarge(detail, hint="Name one of its series.", field="study")
                return parse_related(answer.headers.get("content-type", ""), bytes(body))
        except httpx2.HTTPError as error:
            raise _unreachable() from error

    def store(self, files: Sequence[bytes]) -> tuple[list[str], list[str]]:
        """Store files; the UIDs of the objects that the PACS took, and why it refused others.

        Raises NotReady: it can't be reached, or refuses the request.
        """
        content_type, body = build_related(files)
        headers = {"content-type": content_type, "accept": "application/dicom+json"}
        answer = self._send("POST", "/studies", content=body, headers=headers, allowed=409)  # 409: it took none
        try:
            taken, refused = ((answer.json().get(tag) or {}).get("Value", []) for tag in ("00081199", "00081198"))
            return [str(_value(item.get("00081155"))) for item in taken], [_tell_refusal(item) for item in refused]
        except (ValueError, AttributeError, TypeError) as error:
            _check(answer.status_code)
            raise Fault("The PACS answered a store in a form that is not DICOM JSON.") from error

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _send(self, method: str, path: str, allowed: int = 200, **more: Any) -> httpx2.Response:
        try:
            answer = self._client.request(method, path, **more)
        except httpx2.HTTPError as error:
            raise _unreachable() from error
        if answer.status_code != allowed:
            _check(answer.status_code)
        return answer


def _tell_refusal(item: Mapping[str, Any]) -> str:
    """Why the PACS did not take an object (PS3.18, table I.2-2)."""
    reason = int(_value(item.get("00081197")) or 0)
    why = " (it does not take objects of this class)" if reason == CLASS_NOT_TAKEN else ""
    return f"The PACS refused {_value(item.get('00081155'))} with the reason {reason:04X}{why}."


def _check_uid(uid: str) -> str:
    if not uid or len(uid) > 64 or not all(part.isdigit() for part in uid.split(".")):
        raise InvalidOption("A UID is digits and dots, at most 64 of them.", field="study")
    return uid


def _check(status: int) -> None:
    if status == 404:
        raise NotFound("The PACS has no such study.", field="study")
    if status >= 300:  # also a redirect, which is not followed: it would take the credentials elsewhere
        hint = "Look at FOVEA_DICOMWEB_URL and FOVEA_DICOMWEB_AUTHORIZATION."
        raise NotReady(f"The PACS refused with the status {status}.", hint=hint)


def _unreachable() -> NotReady:
    return NotReady("The PACS can't be reached.", hint="Look at FOVEA_DICOMWEB_URL.", retry_after=5)


def _values(attribute: Any) -> list[Any]:
    """The values of an attribute in DICOM JSON."""
    values: list[Any] = (attribute or {}).get("Value") or []
    return values


def _value(attribute: Any) -> Any:
    """The only value of an attribute, or the first; None where there is none."""
    return next(iter(_values(attribute)), None)
