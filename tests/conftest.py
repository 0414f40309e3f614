import os
import tempfile

# One compilation cache for this test run: many tests, some in processes of their own, compile the
# same program. It starts empty, so that no result depends on earlier runs. JAX reads the variable
# when it is imported.
_cache = tempfile.TemporaryDirectory(prefix="jax-cache-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
