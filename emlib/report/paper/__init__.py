"""The paper's own numbers, and a study's runs beside them."""
