"""Which of RRFormer's two networks is meant; knows neither."""

from typing import Literal

Variant = Literal["released", "paper"]
"""`released` leaves the transformer's body out, as the released code does in effect; `paper` keeps its result."""
