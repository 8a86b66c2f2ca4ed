"""gramjax: generative and scalar reward models, and what is trained with them, in JAX."""

__version__ = "0.1.0"
