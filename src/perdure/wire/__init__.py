"""How OpenAI spells it: objects, request bodies, stream events, list pages. No I/O.

The API object is the record: what stands here is what is stored and what goes out.
"""
