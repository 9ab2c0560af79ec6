"""Files of any kind to records: what is damaged is skipped, listed and never fatal."""
