"""Measured costs -> the targets, each with what was found and whether it is met."""

from typing import Any

from peers.setups import SETUPS

MAX_OF_BEST_PEER = 0.5
MAX_OF_FLOOR = {"short": 1.5, "stream": 1.5, "logprobs": 1.25}
MAX_IMPORT_OF_BEST_PEER = 1 / 3
MAX_DELTA_GROWTH = 1.05


def judge_targets(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Every target that the results can speak to."""
    targets = []

    def judge(name: str, found: float, limit: float) -> None:
        targets.append(
            {
                "name": name,
                "value": round(found, 3),
                "target": round(limit, 3),
                "met": found <= limit,
            }
        )

    added = results["instructions"]["added"]
    ours = added.get("ours", {})
    peers = {name: rows for name, rows in added.items() if SETUPS[name].is_peer}
    for row, value in ours.items():
        if peers and row != "logprobs":
            best = min(peers, key=lambda name: peers[name][row])
            judge(f"{row}: of the best peer ({best})", value / peers[best][row], MAX_OF_BEST_PEER)
        if "floor" in added and row in MAX_OF_FLOOR:
            judge(f"{row}: of the floor", value / added["floor"][row], MAX_OF_FLOOR[row])
    full, delta = (
        added.get(name, {}).get("agent200") for name in ("ours-trajectory", "ours-delta")
    )
    if full and delta:
        judge("delta at 200 messages: instructions of full", delta / full, 1.0)
    sizes = results.get("bytes", {}).get("ours-delta")
    if sizes:
        growth = sizes["200"] / sizes["20"]
        judge("delta: bytes at 200 messages of those at 20", growth, MAX_DELTA_GROWTH)
    imports = results.get("import", {})
    peers = {name: cost for name, cost in imports.items() if SETUPS[name].is_peer}
    if "ours" in imports and peers:
        for unit in ("cpu_ms", "instructions"):
            best = min(peers, key=lambda name: peers[name][unit])
            ratio = imports["ours"][unit] / peers[best][unit]
            judge(f"import, {unit}: of the best peer ({best})", ratio, MAX_IMPORT_OF_BEST_PEER)
    return targets
