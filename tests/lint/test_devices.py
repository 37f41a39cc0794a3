"""The lint of tensor factories finds what it should, and each of its exceptions is used."""

import ast

from tests.lint import devices


def found(source: str) -> list[str]:
    return [f"{function}: {ast.unparse(call)}" for function, call in devices.iter_factories(ast.parse(source))]


def test_factories_without_a_device_are_found_with_the_function_around_them():
    source = """
x = torch.zeros(3)
def f(a):
    y = torch.arange(3, device=a.device) + torch.tensor([1])
    class C:
        def g(self): return torch.from_numpy(a)
"""
    assert found(source) == ["<module>: torch.zeros(3)", "f: torch.tensor([1])", "g: torch.from_numpy(a)"]


def test_what_names_a_device_or_belongs_to_a_module_is_left_alone():
    source = """
def __init__(self):
    self.w = nn.Parameter(torch.randn(3) * 0.02)
    self.register_buffer("m", norm(torch.randn(3)))
    self.z = x.new_zeros(3) + torch.zeros_like(x) + np.zeros(3) + torch.empty(3, device="cpu")
"""
    assert found(source) == []


def test_the_tree_has_none_but_those_of_the_exceptions_each_of_which_is_needed():
    found = [devices.find_exception(file, function) for file, function, _ in devices.iter_without_device()]
    assert None not in found
    assert set(found) == devices.EXCEPTIONS.keys()
