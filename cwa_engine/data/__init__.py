"""The texts a model is scored and measured on."""
