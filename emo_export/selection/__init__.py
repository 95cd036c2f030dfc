"""Which experts of a layer a product keeps."""
