"""Messages of the HTTP API, as pydantic models, and the bodies that carry tensors."""
