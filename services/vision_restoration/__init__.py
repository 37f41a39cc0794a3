"""vision-restoration: pictures made whole again (RRFormer)."""
