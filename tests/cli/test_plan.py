"""`hanmaru plan` shows what was decided, refuses wrong files in one line, and needs nothing but files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from hanmaru_cli.main import cli
from hanmaru_contracts.wire.engine_spec import EngineSpec

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "operator" / "examples"
MODELS = EXAMPLES / "models"
BF16, FP8, NVFP4 = (MODELS / f"k-exaone-236b{form}.json" for form in ("", "-fp8", "-nvfp4"))
TINY = ROOT / "checkpoints" / "tiny-k-exaone" / "config.json"


def plan(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["plan", *map(str, arguments)])


def example(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((EXAMPLES / f"{name}.yaml").read_text()))


def written(folder: Path, *documents: dict[str, Any]) -> Path:
    file = folder / "given.yaml"
    file.write_text(yaml.safe_dump_all(documents))
    return file


@pytest.mark.parametrize(
    ("name", "configs", "layouts"),
    [
        ("k-exaone-a100-40g", [BF16], ["tensor 16 over 2 pods: 2 x 8 nvidia.com/gpu"]),
        (
            "k-exaone-a100-80g",
            [BF16, f"LGAI-EXAONE/K-EXAONE-236B-A23B-FP8={FP8}"],
            ["tensor 8: 1 x 8 nvidia.com/gpu", "tensor 4: 1 x 4 nvidia.com/gpu"],
        ),
        ("k-exaone-rngd", [NVFP4], ["tensor 4: 1 x 4 furiosa.ai/rngd"]),
        ("tiny-cpu", [TINY], ["tensor 1: 1 x 2 cpu"]),
    ],
)
def test_every_example_has_a_plan(name: str, configs: list[Path | str], layouts: list[str]) -> None:
    options = [part for config in configs for part in ("--model-config", config)]
    result = plan("-f", EXAMPLES / f"{name}.yaml", *options)
    assert result.exit_code == 0, result.output
    assert [layout for layout in layouts if layout not in result.output] == []


def test_the_table_explains_itself() -> None:
    output = plan("-f", EXAMPLES / "k-exaone-a100-40g.yaml", "--model-config", BF16, "--tokens", "32768").output
    for said in (
        "236.57 B parameters, 23.67 B active",
        "48 KiB a token in 12 global layers, 18.0 MiB a sequence in 36 sliding ones",
        "27.9 GiB of 40.0 GiB",
        "15 of 32,768 tokens each",
        "nodes: none given, all assumed healthy",
        "note: tensor 16 replicates the 8 KV heads",
        "not tensor 8: 55.4 GiB of weights on each device of 40.0 GiB",
    ):
        assert said in output


@pytest.mark.parametrize("output", ["yaml", "json"])
def test_the_printed_spec_is_what_a_worker_reads(output: str) -> None:
    result = plan("-f", EXAMPLES / "k-exaone-a100-40g.yaml", "--model-config", BF16, "-o", output)
    found = json.loads(result.output)[0] if output == "json" else next(yaml.safe_load_all(result.output))
    spec = EngineSpec.model_validate(found)
    assert (spec.parallelism.tensor, spec.pool, spec.model.id) == (16, "a100-40", "research/k-exaone")


def test_a_deployment_that_fits_nowhere_is_status_1_with_the_reason(tmp_path: Path) -> None:
    pool, deployment = example("k-exaone-a100-40g")
    pool["spec"]["devices"]["memory"] = "16Gi"
    result = plan("-f", written(tmp_path, pool, deployment), "--model-config", BF16)
    assert result.exit_code == 1
    assert "cannot run: pool a100-40 is too small for 441.6 GiB of weights" in result.output
    assert "(TooSmall)" in result.output


def test_nodes_in_the_files_count_where_the_pool_selects_them(tmp_path: Path) -> None:
    def node(name: str, count: str, product: str = "NVIDIA-A100-SXM4-40GB") -> dict[str, Any]:
        labels = {"nvidia.com/gpu.product": product}
        status = {"allocatable": {"nvidia.com/gpu": count, "cpu": "127500m", "memory": "1Ti"}}
        return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "status": status}

    few = written(tmp_path, {"kind": "List", "items": [node("a", "7"), node("b", "8", "NVIDIA-T4")]})
    result = plan("-f", EXAMPLES / "k-exaone-a100-40g.yaml", "-f", few, "--model-config", BF16)
    assert result.exit_code == 1
    assert "node a offers 7 of 8 nvidia.com/gpu" in result.output
    enough = written(tmp_path, {"kind": "List", "items": [node("a", "7"), node("c", "8"), node("d", "8")]})
    result = plan("-f", EXAMPLES / "k-exaone-a100-40g.yaml", "-f", enough, "--model-config", BF16)
    assert result.exit_code == 0
    assert "3 nodes in the files" in result.output
    assert "1 of 3 nodes are of no use" in result.output


def test_a_pools_own_source_and_settings_replace_the_deployments(tmp_path: Path) -> None:
    pool, deployment = example("k-exaone-rngd")
    other = example("k-exaone-a100-80g")[0]
    deployment["spec"]["source"]["huggingFace"]["repo"] = "LGAI-EXAONE/K-EXAONE-236B-A23B"
    deployment["spec"]["pools"] = [
        {"name": "a100-80", "serving": {"contextTokens": 4096}},
        {
            "name": "rngd",
            "source": {"type": "PersistentVolumeClaim", "persistentVolumeClaim": {"claimName": "npu", "path": "k"}},
        },
    ]
    file = written(tmp_path, pool, other, deployment)
    result = plan("-f", file, "--model-config", BF16, "--model-config", f"npu/k={NVFP4}")
    assert result.exit_code == 0, result.output
    assert "4,096 tokens, 3 draft tokens" in result.output
    assert "49,483 tokens" in result.output
    without = plan("-f", file, "--model-config", f"npu/k={NVFP4}")
    assert without.exit_code == 2
    assert "--model-config LGAI-EXAONE/K-EXAONE-236B-A23B=FILE" in without.output


def test_a_wrong_file_is_said_in_one_line_with_status_2(tmp_path: Path) -> None:
    pool, deployment = example("k-exaone-a100-40g")
    cases: list[tuple[list[dict[str, Any]], str]] = [
        ([pool], "no ModelDeployment"),
        ([deployment], "names pool a100-40, which no file has"),
        ([pool | {"apiVersion": "v2"}, deployment], "apiVersion serving.hanmaru.dev/v1alpha1"),
        ([pool | {"spec": pool["spec"] | {"devicez": 1}}, deployment], "spec.devicez"),
        ([pool | {"spec": None}, deployment], "pool a100-40"),
        ([pool, deployment | {"metadata": {}}], "metadata.name"),
    ]
    for documents, said in cases:
        result = plan("-f", written(tmp_path, *documents), "--model-config", BF16)
        assert (result.exit_code, said in result.output, "Traceback" in result.output) == (2, True, False), (
            result.output
        )


@pytest.mark.parametrize(
    ("text", "said"), [("a: [", "is not YAML"), ("!!python/object:os.system {}", "is not YAML"), ("- 1\n", "no Model")]
)
def test_what_is_no_yaml_of_ours_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "given.yaml"
    file.write_text(text)
    result = plan("-f", file, "--model-config", BF16)
    assert result.exit_code == 2
    assert said in result.output


@pytest.mark.parametrize("config", ["/nowhere/config.json", EXAMPLES / "tiny-cpu.yaml", EXAMPLES])
def test_a_config_that_cannot_be_read_is_refused(config: str | Path) -> None:
    result = plan("-f", EXAMPLES / "tiny-cpu.yaml", "--model-config", config)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_it_imports_no_client_and_no_engine() -> None:
    look = (
        "import sys; from hanmaru_cli.main import cli\n"
        f"try: cli(['plan', '-f', {str(EXAMPLES / 'tiny-cpu.yaml')!r}, '--model-config', {str(TINY)!r}])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('kopf', 'lightkube', 'redis', 'ray', 'torch', 'sglang') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.splitlines()[-1] == "[]"
