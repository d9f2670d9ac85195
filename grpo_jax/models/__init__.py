"""Parameters are nested dicts of arrays; models are functions of them."""
