"""Rules that drop or change a document: small pure functions with their published sources."""
