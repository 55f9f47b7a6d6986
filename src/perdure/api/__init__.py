"""How clients come in: one file per resource, functions named by OpenAI's operationId."""
