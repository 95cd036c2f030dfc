"""Results as text, JUnit XML and HTML."""
