# The kernels in the form that ships: nvcc's PTX. Included by ../CMakeLists.txt.
find_program(XLSTM_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin REQUIRED)

# Appends the C++ files of a CUDA source, compiled for an architecture, to the list of this name. More: options of nvcc.
function(xlstm_translate list source arch)
  cmake_path(GET source STEM stem)
  set(folder ${CMAKE_CURRENT_BINARY_DIR}/ptx/${list})
  set(ptx ${folder}/${stem}.${arch}.ptx)
  add_custom_command(
    OUTPUT ${ptx}
    COMMAND ${CMAKE_COMMAND} -E make_directory ${folder}
    COMMAND ${CMAKE_CUDA_COMPILER_LAUNCHER} ${XLSTM_NVCC} -ptx -arch=${arch} -std=c++20 -O3 -DNDEBUG -lineinfo -I${xlstm_root}/csrc ${ARGN} -MD -MF
            ${ptx}.d -MT ${ptx} -o ${ptx} ${source}
    DEPENDS ${source}
    DEPFILE ${ptx}.d
    VERBATIM COMMAND_EXPAND_LISTS)
  xlstm_translate_ptx(${list} ${ptx})
  set(${list} ${${list}} PARENT_SCOPE)
endfunction()
