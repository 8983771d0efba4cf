"""Look at the evidence of edited copies of the repository, one after another, in children of one warm process.

What takes seconds to import and is not ours is imported once; each copy's own labkit is imported in a child. Reads a
line of JSON for each copy ({"root": FOLDER, "first": FOLDER OR NULL}, the second being put before all other packages)
and answers with a line: by report the cells that are missing, stale, or computed by other packages, and what drifted.

    python edit_server.py < requests
"""

import importlib
import json
import os
import sys

HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "pandas", "scipy.stats", "sklearn", "matplotlib.pyplot")
HEAVY += ("seaborn", "pydantic", "huggingface_hub", "tokenizers", "accelerate", "transformers.models.gpt2")


def answer(request):
    root = request["root"]
    sys.path[:0] = [path for path in (request["first"], root) if path]
    os.environ.update(LABKIT_ROOT=root, LABKIT_OUTPUT=root)
    importlib.invalidate_caches()
    from labkit.workflow import evidence, lock, params
    from labkit.workflow.report import reports

    assert evidence.__file__.startswith(root)
    found = {"drift": [f"{one.name}: {one.why}" for one in lock.drift()], "reports": {}}
    for report in (name for name, one in reports().items() if one.study):
        state = evidence.look(params.resolve(report, "cpu"))
        own = {"missing": list(state.missing), "outdated": dict(state.outdated)}
        found["reports"][report] = own | {"packages": dict(state.other_packages), "present": state.n_present}
    return found


def main():
    for name in HEAVY:
        importlib.import_module(name)
    for line in sys.stdin:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            try:
                said = answer(json.loads(line))
            except BaseException as error:
                said = {"error": f"{type(error).__name__}: {error}"}
            with os.fdopen(write, "w") as out:
                out.write(json.dumps(said))
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as answers:
            said = answers.read()
        os.waitpid(child, 0)
        print(said, flush=True)


if __name__ == "__main__":
    main()
