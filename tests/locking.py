"""Started by test_locks.py: holds a folder's lock, with a process forked from it.

python locking.py FOLDER
"""

import multiprocessing
import sys
import time
from pathlib import Path

from mudi.ground.locks import locked

if __name__ == "__main__":
    with locked(Path(sys.argv[1])):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        print(child.pid, flush=True)
        sys.stdin.read()
        child.kill()
