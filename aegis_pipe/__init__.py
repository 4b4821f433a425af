"""AegisPipe: a declarative inference runtime."""
