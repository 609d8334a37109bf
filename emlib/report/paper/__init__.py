"""The paper's published numbers, and comparisons of a study's runs with them."""
