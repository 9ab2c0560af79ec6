"""Every attempt to break out of the sandbox: what came of it inside, and whether it succeeds without.

    python benchmarks/sandbox_attacks.py [--no-bare] [--json FILE]

Run it as root and as an ordinary user: what is harmless enough is run without the sandbox too, as that user.
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.attacking import attempt_bare, descendants, run_attacks, world
from support.attacks import ATTACKS

from isthmus.data.synthetic.sandbox.languages import present
from isthmus.data.synthetic.sandbox.pool import Sandbox


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-bare", action="store_true", help="run nothing outside the sandbox")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    attacks = [attack for attack in ATTACKS if attack.language in present()]
    languages = [name for name in ("perl", "javascript") if name in present()]
    bare: dict[str, bool] = {}
    if not chosen.no_bare:
        for attack in attacks:
            if attack.bare:
                with world() as around:
                    bare[attack.name] = attempt_bare(around, attack)
    began = time.perf_counter()
    with world() as around, Sandbox(languages, slots=4) as sandbox:
        results = run_attacks(sandbox, around, attacks)
        seconds = time.perf_counter() - began
        harm = around.harm()
        left = sum(len(descendants(process)) - 1 for process in sandbox.processes())
    without = {True: "succeeds", False: "fails here", None: "not tried"}
    for result in results:
        attack = result.attack
        state = "contained" if result.contained else "NOT CONTAINED"
        outside = without[bare.get(attack.name)]
        print(f"{attack.kind:10} {attack.name:56} {state:13} without: {outside:10} {result.how}")
    contained = sum(result.contained for result in results)
    print(f"{contained} of {len(results)} contained in {seconds:.1f} s; harm outside: {harm or 'none'}; left: {left}")
    print(f"without the sandbox {sum(bare.values())} of {len(bare)} that were tried succeed, as user {os.geteuid()}")
    if chosen.json:
        rows = {
            result.attack.name: {
                "kind": result.attack.kind,
                "language": result.attack.language,
                "contained": result.contained,
                "how": result.how,
                "without": without[bare.get(result.attack.name)],
            }
            for result in results
        }
        machine = {"kernel": platform.release(), "machine": platform.machine(), "user": os.geteuid()}
        summary = {"attacks": len(results), "contained": contained, "harm": harm, "processes left": left}
        chosen.json.write_text(json.dumps({**machine, **summary, "results": rows}, indent=1) + "\n")
    return 0 if contained == len(results) and not harm and not left else 1


if __name__ == "__main__":
    sys.exit(main())
