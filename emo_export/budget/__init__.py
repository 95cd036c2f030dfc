"""Which type each part of each layer gets: what it costs, measured, and the best for a budget."""
