"""DICOM: objects in, segmentations and structured reports out, over files and DICOMweb."""
