"""Maps of one number, which coupling, autoregressive and elementwise layers apply to each coordinate."""
