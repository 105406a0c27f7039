"""Power loss: a disk that keeps only what was synced, under the store's own writer.

The model is harsher than a journaling file system. Of everything written since the last successful
sync each 512-byte sector may or may not be there, in any of the versions it had; a file may have
any of the sizes it had; a name in a folder that was not synced since may be there or not, a renamed
file under either name. A sync that fails leaves a random part on disk and marks all of it clean, so
that a second sync says success and writes nothing.
"""

import errno
import logging
import random
from dataclasses import dataclass, field
from pathlib import Path

from faultlib.parts import Part
from starpo_trace.store.files import Files
from starpo_trace.store.rotation import SegmentedStore
from starpo_trace.store.segments import (
    OPEN_SUFFIX,
    SUFFIX,
    Record,
    frame_record,
    scan_records,
)

SECTOR = 512
STORE = Path("/data/agent/traces")


class PowerCut(BaseException):
    """The machine is off."""


@dataclass
class ModelFile:
    """One file: what the process sees, what is on disk, and what is neither for sure."""

    content: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    versions: dict[int, list[bytes]] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)

    def note_sectors(self, start: int, end: int) -> None:
        for sector in range(start // SECTOR, -(-end // SECTOR)):
            data = bytes(self.content[sector * SECTOR : (sector + 1) * SECTOR])
            self.versions.setdefault(sector, []).append(data.ljust(SECTOR, b"\0"))
        self.sizes.append(len(self.content))

    def write(self, data: bytes, offset: int) -> None:
        if len(self.content) < offset:
            self.content.extend(bytes(offset - len(self.content)))
        self.content[offset : offset + len(data)] = data
        self.note_sectors(offset, offset + len(data))

    def truncate(self, length: int) -> None:
        if length < len(self.content):
            del self.content[length:]
        else:
            self.content.extend(bytes(length - len(self.content)))
        self.note_sectors(length, length + 1)

    def sync(self) -> None:
        # Sectors that a failed sync marked clean are not written again: only versions are.
        size = len(self.content)
        self._place({sector: found[-1] for sector, found in self.versions.items()}, size)

    def lose(self, chance: random.Random) -> None:
        """Keep a random part of what is not synced, and forget that there was more."""
        chosen = {
            sector: chance.choice(found)
            for sector, found in self.versions.items()
            if chance.random() < 0.6
        }
        self._place(chosen, chance.choice([len(self.durable), *self.sizes]))

    def _place(self, sectors: dict[int, bytes], size: int) -> None:
        for sector, data in sectors.items():
            end = (sector + 1) * SECTOR
            if len(self.durable) < end:
                self.durable.extend(bytes(end - len(self.durable)))
            self.durable[sector * SECTOR : end] = data
        if len(self.durable) < size:
            self.durable.extend(bytes(size - len(self.durable)))
        del self.durable[size:]
        self.versions.clear()
        self.sizes.clear()


class ModelDisk(Files):
    """A machine's disk in memory, with faults and power cuts by a seeded generator."""

    def __init__(self, chance: random.Random, *, fault_rate: float) -> None:
        self.chance = chance
        self.fault_rate = fault_rate
        self.num_steps_left = 1 << 30
        self.names: dict[Path, ModelFile] = {}
        self.durable_names: dict[Path, ModelFile] = {}
        self.renames: dict[int, list[Path | None]] = {}
        self.folders: set[Path] = {Path("/"), Path("/data")}
        self.durable_folders = set(self.folders)
        self.open_files: dict[int, ModelFile] = {}
        self.num_opened = 0

    def step(self, *numbers: int) -> None:
        """One system call: the power may go, or the call may fail with one of these errors."""
        self.num_steps_left -= 1
        if self.num_steps_left < 0:
            raise PowerCut
        if numbers and self.chance.random() < self.fault_rate:
            number = self.chance.choice(numbers)
            raise OSError(number, errno.errorcode[number])

    def is_directory(self, path: Path) -> bool:
        return path in self.folders

    def make_directory(self, path: Path) -> None:
        self.step(errno.ENOSPC, errno.EROFS)
        self.folders.add(path)

    def sync_directory(self, path: Path) -> None:
        self.step(errno.EIO, errno.EMFILE)
        self.durable_folders |= {each for each in self.folders if each.parent == path}
        for each in [*self.durable_names, *self.names]:
            if each.parent == path:
                self.durable_names.pop(each, None)
        for each, file in self.names.items():
            if each.parent == path:
                self.durable_names[each] = file
                self.renames.pop(id(file), None)

    def create(self, path: Path) -> int:
        self.step(errno.ENOSPC, errno.EMFILE, errno.EROFS, errno.EDQUOT)
        file = self.names[path] = ModelFile()
        self.renames[id(file)] = [None, path]
        self.num_opened += 1
        self.open_files[self.num_opened] = file
        return self.num_opened

    def write_at(self, descriptor: int, data: memoryview, offset: int) -> int:
        self.step(errno.ENOSPC, errno.EIO, errno.EDQUOT)
        num_bytes = len(data)
        if self.chance.random() < 0.2:
            num_bytes = self.chance.randint(1, num_bytes)
        self.open_files[descriptor].write(bytes(data[:num_bytes]), offset)
        return num_bytes

    def sync_data(self, descriptor: int) -> None:
        file = self.open_files[descriptor]
        try:
            self.step(errno.EIO, errno.ENOSPC, errno.EDQUOT)
        except OSError:
            file.lose(self.chance)
            raise
        file.sync()

    def truncate(self, descriptor: int, length: int) -> None:
        self.step(errno.EIO)
        self.open_files[descriptor].truncate(length)

    def is_deleted(self, descriptor: int) -> bool:
        self.step()
        file = self.open_files[descriptor]
        return all(each is not file for each in self.names.values())

    def close(self, descriptor: int) -> None:
        self.step(errno.EIO)
        del self.open_files[descriptor]

    def rename(self, path: Path, target: Path) -> None:
        self.step(errno.EIO, errno.EROFS, errno.EACCES)
        file = self.names[target] = self.names.pop(path)
        self.renames.setdefault(id(file), [path]).append(target)

    def remove(self, path: Path) -> None:
        self.step(errno.EIO, errno.EROFS)
        file = self.names.pop(path)
        self.renames.setdefault(id(file), [path]).append(None)

    def measure_segments(self, directory: Path, suffixes: tuple[str, ...]) -> int:
        self.step(errno.EIO, errno.EMFILE)
        return sum(len(file.content) for file in self.names.values())

    def cut_power(self) -> None:
        """What a machine that comes up again finds."""
        known = {id(file): file for file in [*self.names.values(), *self.durable_names.values()]}
        found: dict[Path, ModelFile] = {}
        kept_folders = self._choose_folders()
        for number, file in known.items():
            path = self._choose_name(number, file)
            if path is None or path.parent not in kept_folders:
                continue
            file.lose(self.chance)
            found[path] = ModelFile(
                content=bytearray(file.durable), durable=bytearray(file.durable)
            )
        self.folders = set(kept_folders)
        self.durable_folders = set(kept_folders)
        self.names = found
        self.durable_names = dict(found)
        self.renames = {}
        self.open_files = {}

    def _choose_folders(self) -> set[Path]:
        kept: set[Path] = set()
        for folder in sorted(self.folders | self.durable_folders):
            is_there = folder in self.durable_folders or self.chance.random() < 0.5
            if is_there and (folder.parent in kept or folder.parent == folder):
                kept.add(folder)
        return kept

    def _choose_name(self, number: int, file: ModelFile) -> Path | None:
        names = self.renames.get(number)
        if names is not None:
            return self.chance.choice(names)
        return next(path for path, each in self.durable_names.items() if each is file)


class CarelessDisk(ModelDisk):
    """A writer on it believes it has synced; the checks must find out."""

    def __init__(self, chance: random.Random, *, fault_rate: float, forgets: str) -> None:
        super().__init__(chance, fault_rate=fault_rate)
        self.forgets = forgets

    def sync_data(self, descriptor: int) -> None:
        if self.forgets == "data":
            self.step()
        else:
            super().sync_data(descriptor)

    def sync_directory(self, path: Path) -> None:
        if self.forgets == "names":
            self.step()
        else:
            super().sync_directory(path)


@dataclass
class Outcome:
    """Counts of one generated sequence."""

    crashes: int = 0
    acknowledged: int = 0
    refusals: int = 0
    torn_places: int = 0
    acknowledged_lost: int = 0
    garbage: int = 0


def run_sequence(seed: int, *, forgets: str | None = None) -> Outcome:
    """Appends, rotations, faults, power cuts and restarts, generated from a seed."""
    chance = random.Random(seed)
    fault_rate = chance.choice([0.0, 0.05, 0.2])
    if forgets is None:
        disk = ModelDisk(chance, fault_rate=fault_rate)
    else:
        disk = CarelessDisk(chance, fault_rate=fault_rate, forgets=forgets)
    outcome = Outcome()
    written: set[bytes] = set()
    acknowledged: set[bytes] = set()
    for _ in range(chance.randint(1, 4)):
        disk.num_steps_left = chance.randint(0, 90)
        try:
            use_store(disk, written, acknowledged, outcome)
        except PowerCut:
            outcome.crashes += 1
            disk.cut_power()
        check(disk, written, acknowledged, outcome)
    outcome.acknowledged = len(acknowledged)
    return outcome


def use_store(
    disk: ModelDisk, written: set[bytes], acknowledged: set[bytes], outcome: Outcome
) -> None:
    """One process: appends as the sink does, keeping what is refused for the next attempt."""
    chance = disk.chance
    store = SegmentedStore(
        STORE,
        segment_bytes=chance.choice([600, 3000, 1 << 20]),
        segment_age_s=1e9,
        max_bytes=1 << 40,
        files=disk,
    )
    waiting: bytes | None = None
    for _ in range(chance.randint(1, 25)):
        if waiting is None:
            waiting = make_payload(chance, len(written))
            written.add(waiting)
        try:
            store.append(frame_record(waiting, 1))
        except OSError:
            outcome.refusals += 1
            continue
        acknowledged.add(waiting)
        waiting = None
        if chance.random() < 0.1:
            store.seal()
    if chance.random() < 0.5:
        store.seal()


def make_payload(chance: random.Random, number: int) -> bytes:
    """Unique bytes, some of which look like the beginning of a record."""
    size = chance.choice([0, 10, 400, 512, 1500])
    noise = chance.choice([b"x", b"SPR1", b"SPR1\x05\0\0\0", b"\0"])
    return f"<{number}>".encode() + (noise * size)[:size]


def check(disk: ModelDisk, written: set[bytes], acknowledged: set[bytes], outcome: Outcome) -> None:
    """Read everything back."""
    found: set[bytes] = set()
    for path, file in disk.names.items():
        if not path.name.endswith((SUFFIX, OPEN_SUFFIX)):
            continue
        for item in scan_records(bytes(file.content), is_open=path.name.endswith(OPEN_SUFFIX)):
            if isinstance(item, Record):
                found.add(item.payload)
                outcome.garbage += item.payload not in written or item.num_spans != 1
            else:
                outcome.torn_places += 1
    outcome.acknowledged_lost += len(acknowledged - found)


def run_sequences(first_seed: int, num_sequences: int, *, forgets: str | None = None) -> Outcome:
    """Many sequences -> the sums of their counts."""
    total = Outcome()
    for seed in range(first_seed, first_seed + num_sequences):
        outcome = run_sequence(seed, forgets=forgets)
        for name, count in vars(outcome).items():
            setattr(total, name, getattr(total, name) + count)
    return total


def run(*, quick: bool, seed: int) -> Part:
    """Generate sequences, and check that careless writers are found out."""
    logging.disable(logging.WARNING)  # of every fault, which are the point
    try:
        num_sequences = 1_000 if quick else 20_000
        total = run_sequences(seed * 1_000_000, num_sequences)
        careless = {
            name: run_sequences(seed * 1_000_000, 200, forgets=name).acknowledged_lost
            for name in ("data", "names")
        }
    finally:
        logging.disable(logging.NOTSET)
    part = Part(figures={"sequences": num_sequences, **vars(total)})
    part.figures["lost_by_a_writer_that_never_syncs_content"] = careless["data"]
    part.figures["lost_by_a_writer_that_never_syncs_folders"] = careless["names"]
    part.target(
        "power: generated sequences", num_sequences, ">= 10000", met=num_sequences >= 10_000
    )
    part.target(
        "power: acknowledged records lost",
        total.acknowledged_lost,
        "== 0",
        met=total.acknowledged > 0 and total.acknowledged_lost == 0,
    )
    part.target("power: garbage read as a record", total.garbage, "== 0", met=total.garbage == 0)
    part.target(
        "power: careless writers found out", careless, "> 0 each", met=all(careless.values())
    )
    return part
