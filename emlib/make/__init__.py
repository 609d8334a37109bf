"""How artefacts are made."""
