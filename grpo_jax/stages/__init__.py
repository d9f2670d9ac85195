"""One readable loop each: `run(config, workdir)`."""
