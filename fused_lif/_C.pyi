def build_info() -> dict[str, str]: ...
def cpu_capability() -> str: ...
def supported_cpu_capabilities() -> list[str]: ...
def set_cpu_capability(name: str) -> None: ...
def cuda_sequence_plan(
    is_backward: bool,
    columns: int,
    element_bytes: int,
    neuron: int,
    soft_reset: bool,
    multiprocessors: int,
    alignment: int = 256,
) -> tuple[int, int]: ...
def cuda_cluster_rows(
    T: int,
    B: int,
    H: int,
    is_double: bool,
    segment: int,
    capability: int,
    multiprocessors: int,
    shared_memory: int,
) -> int: ...
