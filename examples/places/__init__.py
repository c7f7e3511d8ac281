"""In which country is a place? Its name tells: `python -m examples.places`."""
