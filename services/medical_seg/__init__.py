"""The service medical-seg: polyps in endoscopy frames, segmented by PraNet and PraNet-V2."""
