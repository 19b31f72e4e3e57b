"""One replica of two pods on two nodes, each with half of the experts, of a checkpoint in an OCI image.

It answers what one machine does, and restarts whole.
"""

from __future__ import annotations

import json

import pytest
from hanmaru_e2e import release as names
from hanmaru_e2e.kube import Manifest, restarts
from hanmaru_e2e.progress import Progress
from hanmaru_e2e.target import CHECKPOINT
from hanmaru_e2e.world import MODELS, Clients, Key, World
from hanmaru_operator.render.pod import SPEC_KEY, SPEC_MOUNT
from tokenizers import Tokenizer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
GROUP = "tiny-group"
GROUP_SLOT = "hanmaru.test/group"


@pytest.fixture(scope="module")
def group(world: World, model: str, progress: Progress) -> str:
    """The deployment, when it serves. It stays for the tests of trust, which delete it."""
    world.claims(MODELS)
    image = {"type": "Image", "image": {"reference": world.target.images["checkpoint"]}}
    template = names.one_a_node(world.target, GROUP_SLOT)
    serving = {"contextTokens": 4096, "parallelism": {"tensor": 2, "expert": 2}, "podTemplate": template}
    # In bfloat16 two ranks round differently from one, and a tiny model's choices are close.
    serving["extraArgs"] = ["--dtype", "float32"]
    world.deploy(GROUP, names.POOL, source=image, serving=serving)
    with progress.step("the group of two pods serves"):
        world.await_serving(GROUP, 1, within_s=400)
    return GROUP


@pytest.fixture(scope="module")
def group_key(world: World, group: str) -> Key:
    return world.tenant("group-user", [(MODELS, group)])


def test_a_replica_of_two_pods_on_two_nodes_serves_a_model_from_an_image_volume(
    world: World, clients: Clients, group: str, group_key: Key
) -> None:
    pods = world.serving(group)
    assert len({pod["spec"]["nodeName"] for pod in pods}) == len(pods) == 2
    volumes = {volume["name"]: volume for volume in pods[0]["spec"]["volumes"]}
    assert volumes["model"]["image"]["reference"] == world.target.images["checkpoint"]
    world.kube.wait("the group answers", lambda: clients.ask("openai", group_key, group)["status"] == 200, within_s=30)


def test_drafting_ranks_on_two_nodes_with_half_of_the_experts_each_say_what_one_machine_says(
    world: World, clients: Clients, group: str, group_key: Key
) -> None:
    # torch stays out of the runs that deselect this test.
    from hanmaru_testing.reference import TIE_LOGITS, Reference

    (plan,) = world.kube.get(world.deployment_path(group))["status"]["plan"]
    assert plan["parallelism"] == "tensor 2, expert 2 over 2 pods"
    for pod in world.serving(group):
        told = json.loads(world.kube.exec(MODELS, pod["metadata"]["name"], "cat", f"{SPEC_MOUNT}/{SPEC_KEY}"))
        assert told["draftTokens"], "the example's pool offers MTP"
    answer = clients.ask("greedy", group_key, group)
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    steps = Reference(CHECKPOINT).greedy(tokenizer.encode(answer["prompt"]).ids, answer["tokens"])
    assert min(step.margin_logits for step in steps) > TIE_LOGITS, "the reference is undecided: ask something else"
    assert answer["text"] == tokenizer.decode([step.token for step in steps])


def test_one_pod_killed_restarts_the_whole_group_and_it_serves_again(
    world: World, clients: Clients, group: str, group_key: Key, progress: Progress
) -> None:
    before = _starts(world.serving(group))
    assert len(before) == 2
    second = max(world.serving(group), key=lambda pod: str(pod["metadata"]["name"]))["metadata"]["name"]
    world.kill_pod(MODELS, second)
    with progress.step("both of its pods are started anew"):

        def are_new() -> bool:
            now = _starts(world.workers(group))
            return len(now) == 2 and not now & before

        world.kube.wait("both pods have new containers", are_new, within_s=180)
    with progress.step("the group serves again"):
        world.await_serving(group, 1, within_s=400)
        world.kube.wait(
            "the group answers", lambda: clients.ask("openai", group_key, group)["status"] == 200, within_s=60
        )


def _starts(pods: list[Manifest]) -> set[tuple[str, int]]:
    """Each start of each pod's engine."""
    return {(pod["metadata"]["uid"], restarts(pod)) for pod in pods}
