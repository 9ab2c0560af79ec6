import pytest

from isthmus.data.extras import need
from isthmus.errors import UserError


def test_a_missing_library_is_named_with_the_way_to_install_it() -> None:
    with pytest.raises(UserError, match=r"no_such_library, which is not installed; pip install 'isthmus\[prepare\]'"):
        need("no_such_library.part")
    with pytest.raises(UserError, match="pip install other"):
        need("no_such_library", "other")
    assert need("json").dumps(1) == "1"
