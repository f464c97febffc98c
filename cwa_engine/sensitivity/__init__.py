"""How sensitive the loss is to each weight: gradients, metrics, exact selection."""
