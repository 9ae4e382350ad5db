from __future__ import annotations

from tests.remedies.running import CAST, harms_no_healthy_one, in_a_folder_of_its_own, net, run

__all__ = ["in_a_folder_of_its_own"]


def test_thaws_its_modules_and_leaves_the_rest_in_the_low_format() -> None:
    treated = run(net(), "float32-island", "norm.weight")
    assert "norm.weight" not in treated.ill()
    assert {p.name for p in treated.evidence.parameters if p.format == "float32"} == {"norm.weight"}


def test_neighbours_get_the_format_they_are_used_to() -> None:
    cast = CAST + "\nmodel.norm.register_forward_hook(lambda m, i, o: seen.append(o.dtype))\nseen = []"
    text = net(cast=cast) + "assert set(seen) == {torch.bfloat16}, seen\n"
    # hooks run in the order they were registered: ours, made with the optimizer, would come last
    text = text.replace(
        "model = model.to(torch.bfloat16)\nmodel.norm", "model = model.to(torch.bfloat16)\nmodel.outer"
    )
    run(text, "float32-island", "norm.weight")


def test_computes_in_float32_inside_an_autocast_region() -> None:
    text = net().replace(
        "        return self.outer", "        kept.append(self.norm.weight.dtype)\n        return self.outer"
    )
    text = text.replace("out = model(", "with torch.autocast('cpu', dtype=torch.bfloat16): out = model(")
    text = text.replace("torch.manual_seed(0)", "torch.manual_seed(0)\nkept = []")
    text += "assert set(kept) == {torch.float32}\nassert not torch.is_autocast_enabled('cpu')\n"
    run(text, "float32-island", "norm.weight")


def test_a_copy_of_the_model_carries_it_along() -> None:
    text = (
        net() + "import copy\nassert torch.equal(copy.deepcopy(model)(x.bfloat16()), model(x.bfloat16()))\n"
    )
    run(text, "float32-island", "norm.weight")


def test_does_not_apply_to_a_module_that_holds_low_ones() -> None:
    text = net().replace(
        "self.norm = Norm(32)",
        "self.gain = nn.Parameter(torch.ones(1))\n        self.norm = Norm(32)",
    )
    treated = run(text, "float32-island", "gain", ended="failed")
    assert "DoesNotApply: Net holds modules in the low format" in treated.evidence.run.error


def test_harms_no_float32_program() -> None:
    harms_no_healthy_one("float32-island", "norm.weight")
