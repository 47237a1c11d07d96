"""The session under the names of onnxruntime: for code that takes an ``onnxruntime.InferenceSession``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import onnx
import onnxruntime
from numpy.typing import NDArray

from fgq.errors import ConfigError
from fgq.kernels.products.dispatch import Wish
from fgq.runtime.feeds import NodeArg
from fgq.runtime.session import Session

PROVIDER = "CPUExecutionProvider"
"""What onnxruntime calls the processor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMetadata:
    """What a model says about itself, under onnxruntime's names.

    Parameters
    ----------
    producer_name, graph_name, domain, description, graph_description : str
        Empty where the model does not say.
    version : int
        The model's.
    custom_metadata_map : dict of str to str
        Its metadata properties.
    """

    producer_name: str
    graph_name: str
    domain: str
    description: str
    graph_description: str
    version: int
    custom_metadata_map: dict[str, str]


def _refusing(method: str, instead: str) -> Callable[..., NoReturn]:
    """Return a method of onnxruntime's session that says what to use instead."""

    def refuse(*_arguments: Any, **_options: Any) -> NoReturn:
        raise ConfigError(f"{method}: not part of fgq's session, {instead}")

    refuse.__name__ = method
    refuse.__doc__ = f"Not offered: {instead}."
    return refuse


class InferenceSession:
    """A :class:`~fgq.Session` with the constructor and the methods of onnxruntime's InferenceSession.

    Parameters
    ----------
    path_or_bytes : path-like or bytes
        A model file, or its contents.
    sess_options : onnxruntime.SessionOptions, optional
        ``intra_op_num_threads`` is honoured; options that only make onnxruntime faster have no effect.
    providers : sequence of str or of (str, dict), optional
        All but ``CPUExecutionProvider`` are passed over with a warning, as onnxruntime passes over those
        that it was not built with.
    provider_options : sequence of dict, optional
        Have no effect, as for onnxruntime's processor.
    kernels : str or Wish
        As for :class:`~fgq.Session`.

    Raises
    ------
    ModelError
        If the model cannot be read or planned.
    ConfigError
        If `sess_options` ask for a profile or for the optimized model, which there are not.

    Examples
    --------
    >>> session = InferenceSession("model.onnx", providers=["CPUExecutionProvider"])     # doctest: +SKIP
    >>> logits, = session.run(["logits"], {"image": image})                              # doctest: +SKIP
    """

    def __init__(
        self,
        path_or_bytes: str | os.PathLike[str] | bytes,
        sess_options: onnxruntime.SessionOptions | None = None,
        providers: Sequence[str | tuple[str, Mapping[str, Any]]] | None = None,
        provider_options: Sequence[Mapping[str, Any]] | None = None,
        *,
        kernels: str | Wish = Wish.AUTO,
    ) -> None:
        # what the caller asks back, no options of a session that fgq opens (`fgq.graph.ort`)
        self._options = onnxruntime.SessionOptions() if sess_options is None else sess_options
        if self._options.enable_profiling:
            raise ConfigError(
                "enable_profiling: found True, wanted False; see fgq.Session.steps for the kernels"
            )
        if self._options.optimized_model_filepath:
            raise ConfigError(
                "optimized_model_filepath: found a path, wanted none; fgq runs the file as it is"
            )
        for provider in providers or ():
            name = provider if isinstance(provider, str) else provider[0]
            if name != PROVIDER:
                warnings.warn(
                    f"provider {name!r} is not available, the model runs on {PROVIDER}", stacklevel=2
                )
        self._source = path_or_bytes
        self._metadata: ModelMetadata | None = None
        self._session = Session(
            path_or_bytes,
            kernels=kernels,
            threads=self._options.intra_op_num_threads or None,
            allow_float=True,
        )

    def get_inputs(self) -> list[NodeArg]:
        """Return the model's inputs."""
        return self._session.get_inputs()

    def get_outputs(self) -> list[NodeArg]:
        """Return the model's outputs."""
        return self._session.get_outputs()

    def get_overridable_initializers(self) -> list[NodeArg]:
        """Return no inputs: those with a default value are constants here."""
        return []

    def get_modelmeta(self) -> ModelMetadata:
        """Return what the model says about itself."""
        if self._metadata is None:
            self._metadata = _read_metadata(self._source)
        return self._metadata

    def get_session_options(self) -> onnxruntime.SessionOptions:
        """Return the options that the session was made with."""
        return self._options

    def get_providers(self) -> list[str]:
        """Return what runs the model: the processor."""
        return [PROVIDER]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        """Return no options."""
        return {PROVIDER: {}}

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        run_options: onnxruntime.RunOptions | None = None,
    ) -> list[NDArray[Any]]:
        """Compute outputs.

        Parameters
        ----------
        output_names : sequence of str or None
            Which outputs, in which order; None or none for all.
        input_feed : mapping of str to array_like
            A value for each input.
        run_options : onnxruntime.RunOptions, optional
            Has no effect.

        Raises
        ------
        DataError
            If an input is missing, unknown or of another type or shape, or an output has no such name.
        """
        return self._session.run(output_names or None, input_feed)

    io_binding = _refusing("io_binding", "use run, which reads and returns arrays of this process")
    run_with_iobinding = _refusing("run_with_iobinding", "use run")
    run_with_ort_values = _refusing("run_with_ort_values", "use run, which also takes OrtValues")
    run_with_ortvaluevector = _refusing("run_with_ortvaluevector", "use run, which also takes OrtValues")
    run_async = _refusing("run_async", "use run in a thread; several may run one session at once")
    end_profiling = _refusing("end_profiling", "see fgq.Session.steps for the kernels")
    set_providers = _refusing("set_providers", "make another session")


def _read_metadata(source: str | os.PathLike[str] | bytes) -> ModelMetadata:
    contents = source if isinstance(source, bytes) else Path(source).read_bytes()
    model = onnx.ModelProto.FromString(contents)
    return ModelMetadata(
        producer_name=model.producer_name,
        graph_name=model.graph.name,
        domain=model.domain,
        description=model.doc_string,
        graph_description=model.graph.doc_string,
        version=model.model_version,
        custom_metadata_map={entry.key: entry.value for entry in model.metadata_props},
    )
