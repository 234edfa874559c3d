"""The brainstem's own server: `mlx_lm server`, in a process that keeps nothing in reserve.

Run by its path (``python -I -X utf8 brainstem.py --model DIRECTORY --port 8642 ...``) or, where omnid is one binary, as
``omnid worker brainstem ...``; the arguments are those of `mlx_lm server`. MLX keeps freed buffers for later, without a
limit; on a machine with little memory that ends other programs.

Standard library only, and mlx where it is loaded: this file knows nothing of omnid.
"""

import sys
from collections.abc import Sequence

RESERVE_BYTES_MAX = 64 << 20


def main(argv: Sequence[str]) -> int:
    """Serves until it is killed."""
    import mlx.core as mx
    from mlx_lm import server

    mx.set_cache_limit(RESERVE_BYTES_MAX)
    sys.argv = ["brainstem", *argv]
    server.main()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
