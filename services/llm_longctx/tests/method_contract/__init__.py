"""The contract of attention methods: what every one must do, as checks that run over plug-ins and over broken ones.

A check takes the class and asserts; `CHECKS` has them all. It runs the method under its `contract_knobs` on a tiny
random decoder and knows no method by name.
"""

from services.llm_longctx.tests.method_contract import checks

CHECKS = {name: check for name, check in vars(checks).items() if name.startswith("check_")}
