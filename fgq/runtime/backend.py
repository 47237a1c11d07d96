"""The session behind ONNX's backend interface (onnx.backend.base).

The module is a backend itself, as ``onnxruntime.backend`` is:

>>> from fgq.runtime import backend                              # doctest: +SKIP
>>> outputs = backend.prepare(model).run([image])                # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.backend import base

from fgq.errors import ConfigError, DataError, FgqError
from fgq.runtime.session import Session

__all__ = ["Backend", "PreparedModel", "is_compatible", "prepare", "run", "run_node", "supports_device"]


class PreparedModel(base.BackendRep):
    """A model ready to run.

    Parameters
    ----------
    session : Session
    """

    def __init__(self, session: Session) -> None:
        self.session = session

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Compute all outputs.

        Parameters
        ----------
        inputs : mapping of str to ndarray, or sequence of ndarray, or ndarray
            By name, or in the order of the model's inputs.
        **kwargs
            None is known.

        Raises
        ------
        DataError
            If the inputs do not fit the model.
        ConfigError
            If an option is given.
        """
        if kwargs:
            raise ConfigError(f"run: found the options {', '.join(kwargs)}, wanted none")
        if not isinstance(inputs, Mapping):
            names = [value.name for value in self.session.get_inputs()]
            values = [inputs] if isinstance(inputs, np.ndarray) else list(inputs)
            if len(values) != len(names):
                raise DataError(
                    f"inputs: found {len(values)} values, wanted {len(names)}: {', '.join(names)}"
                )
            inputs = dict(zip(names, values, strict=True))
        return tuple(self.session.run(None, inputs))


class Backend(base.Backend):
    """ONNX's backend interface; options of :class:`~fgq.Session` pass through ``**kwargs``."""

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Return whether the session can run the model, by preparing it.

        Parameters
        ----------
        model : onnx.ModelProto
        device : str
            As for :meth:`prepare`.
        **kwargs
            Those of :class:`~fgq.Session`.
        """
        try:
            cls.prepare(model, device, **kwargs)
        except FgqError:
            return False
        return True

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> PreparedModel:
        """Make a model ready to run.

        Parameters
        ----------
        model : onnx.ModelProto
            Of less than 2 GB; a larger one is a file, for :class:`~fgq.Session`.
        device : str
            ``CPU``.
        **kwargs
            Those of :class:`~fgq.Session`.

        Raises
        ------
        ModelError
            If the model cannot be run.
        ConfigError
            If the device or an option is not known.
        """
        if not cls.supports_device(device):
            raise ConfigError(f"device: found {device!r}, wanted CPU")
        return PreparedModel(Session(model.SerializeToString(), **{"allow_float": True, **kwargs}))

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[np.dtype[Any], tuple[int, ...]]] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Run one operator.

        Parameters
        ----------
        node : onnx.NodeProto
        inputs : sequence of ndarray
            One for each input of the node that is not left out.
        device : str
            As for :meth:`prepare`.
        outputs_info : sequence of dtype and shape, optional
            Not needed.
        **kwargs
            ``opset_version``, the version of the node's domain, by default that in which the operator last
            changed; and those of :class:`~fgq.Session`.

        Raises
        ------
        DataError
            If there are not as many inputs as the node names.
        """
        names = [name for name in node.input if name]
        if len(names) != len(inputs):
            raise DataError(f"inputs: found {len(inputs)} values, wanted {len(names)}: {', '.join(names)}")
        version = kwargs.pop("opset_version", None)
        if version is None:
            version = onnx.defs.get_schema(node.op_type, node.domain).since_version
        given = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in zip(names, inputs, strict=True)
        ]
        made = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        model = helper.make_model(
            helper.make_graph([node], "node", given, made),
            opset_imports=[helper.make_opsetid(node.domain, version)],
            ir_version=10,
        )
        return cls.prepare(onnx.shape_inference.infer_shapes(model), device, **kwargs).run(list(inputs))

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Return whether models run on a device, such as ``CPU`` or ``CUDA:1``.

        Parameters
        ----------
        device : str
        """
        return device.partition(":")[0] == "CPU"


is_compatible = Backend.is_compatible
prepare = Backend.prepare
run = Backend.run_model
run_node = Backend.run_node
supports_device = Backend.supports_device
