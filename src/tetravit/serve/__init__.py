"""Models over HTTP: predictions as JSON or pictures, tensors by the Open Inference Protocol, a page to explore with.

`app.py` has the routes, `served.py` a model, `batcher.py` the thread that owns it, `server.py` the process. Needs the
extra `serve` (starlette, uvicorn). Importing this loads neither them nor torch.
"""
