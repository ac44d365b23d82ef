"""What ``FlowVAE`` of both languages shares: its posterior, its data, its training, its scores."""
